// The settings shared by the ten published runs (arXiv 2508.01119): GRPO with one update per iteration, a 72 B judge.
{
  run_name: std.extVar('APP__RUN_NAME'),
  base_exp_dir: std.extVar('APP__BASE_EXP_DIR'),
  train_paths_file: null,  // see data
  val_paths_file: null,
  val_coefficients: null,
  validation: [],  // the published runs have no validation: --set 'validation=["…/omniedit/validation"]'
  model_revision: null,

  num_iterations: 2000,
  episodes_per_iteration: 128,
  generations_per_sample: 8,
  batch_size: 8,
  updates_per_iteration: 1,
  learning_rate: 3e-6,
  warmup_iterations: 0,
  betas: [0.9, 0.999],
  epsilon: 1e-8,
  weight_decay: 0,
  max_grad_norm: 1.0,
  kl_coeff: 0.0003,
  entropy_coeff: 0,
  advantage_over_std: true,
  drop_groups_without_signal: false,
  seed: 42,

  temperature: 1.0,
  top_p: 1.0,
  top_k: -1,
  max_response_tokens: 2048,
  max_length: 3000,
  vllm_gpu_memory_utilization: 0.3,
  overlong: 'zero',  // with thinking: no image after text that is too long; other images have the source's grid
  emu3_use_logit_processor: true,
  separate_vocabularies: true,

  train_text_tokens_only: false,
  text_only_cycle_steps: 10,
  text_only_steps: 10,
  train_vision_tokens_only: false,
  vision_only_cycle_steps: 10,
  vision_only_steps: 10,

  reward_function_api_base: std.extVar('APP__REWARD_FUNCTION_API_BASE'),
  reward_function_api_model_name: 'Qwen/Qwen2.5-VL-72B-Instruct',
  reward_compute_viescore: true,
  reward_compute_ground_score: false,
  reward_final_reward: 'viescore',

  log_episodes_every_n_iterations: 5,
  checkpoint_every: 100,
  keep_model_every: 100,
  push_to_hub_every_n_iterations: 100,
  push_to_hub_repo_id: null,  // published: 'imged_rl__' + run_name; nothing is uploaded without a repository

  gradient_checkpointing: true,
  precision: 'bfloat16',
  sharding: 'zero2',
}
