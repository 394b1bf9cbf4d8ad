"""The commands of ``tuco``, a module each: ``TEXT`` for --help, ``add_options``, and ``run``.

Imported to parse any command: what is heavy is imported in ``run``. Only ``cli`` imports them.
"""
