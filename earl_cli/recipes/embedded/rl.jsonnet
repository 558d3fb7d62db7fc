// Reinforcement learning of the embedded model, rewarded by closeness to the target: no judge and no GPU.
// The data is given on the command line: earl rl --config embedded/rl --data store/ -o run/
{
  model: null,  // the embedded model itself, unless --model names another start
  assistant_prefill: 'edit',
  reward: 'reference',
  num_iterations: 200,
  episodes_per_iteration: 64,
  generations_per_sample: 8,
  batch_size: 32,
  learning_rate: 3e-5,
  kl_coeff: 0.001,
  gradient_checkpointing: false,
  temperature: 1.0,
  max_response_tokens: 400,
  max_length: 512,
  checkpoint_every: 20,
  keep_model_every: 20,
  log_episodes_every_n_iterations: 20,
  validate_every: 20,
  validation_examples: 64,
}
