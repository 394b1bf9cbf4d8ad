"""Which row is to blame for the deaths of processes, and when there is no use in going on."""

from tuco_vllm.corpus.trials import Trial, Watch


def after(*deaths):
    trial = Trial()
    for row in deaths:
        trial = trial.again(row)
    return trial


def test_a_row_that_two_processes_died_alone_with_is_poison():
    assert not after(None).is_close
    assert after(None, None).is_close
    once = after(None, None, 7)
    assert (once.suspects, once.poison) == ({7}, set())
    twice = after(None, None, 7, 9, 7)
    assert (twice.suspects, twice.poison) == ({9}, {7})
    assert twice.deaths == 5


def test_deaths_that_no_row_explains_end_it():
    assert not after(*[None] * 11).is_over
    assert after(*[None] * 12).is_over


def test_rows_that_are_too_many_are_not_to_blame():
    assert not after(None, None, *range(8)).is_over
    assert after(None, None, *range(9)).is_over


def test_the_watch_forgets_what_it_was_asked():
    """Else a death at the beginning of the next attempt would be the last row's of this one."""
    watch = Watch()
    watch.at(3, 17, True)
    watch.at(3, 18, False)
    watch.at(4, 1, True)
    assert (watch.last(3), watch.last(3), watch.last(4)) == ((18, False), (None, False), (1, True))


def test_a_row_that_kills_before_it_is_read_is_not_read_again():
    trial = Trial(2).again(7, read=False).again(7, read=False).again(9).again(9)
    assert (trial.poison, trial.unread) == ({7, 9}, {7})


def test_a_row_that_is_not_touched_any_more_is_not_to_blame():
    """What kills is the reader on its way to it, or the disk behind it: these deaths have a bound."""
    trial = Trial(2).again(7).again(7)
    assert (trial.poison, trial.unread) == ({7}, set())
    trial = trial.again(7, read=False)
    assert (trial.suspects, trial.poison, trial.unread, trial.attempts) == (set(), {7}, {7}, 2)
    for _ in range(10):
        assert not trial.is_over
        trial = trial.again(7, read=False)
    assert trial.is_over


def test_behind_the_last_row_a_death_is_no_rows_fault():
    watch = Watch()
    watch.at(3, 17, True)
    watch.at(3, None, True)
    assert watch.last(3) == (None, True)
