// The paper's claim in miniature: reinforcement learning, rewarded by closeness to the target.
// make reproduce: earl rl --config miniature/rl --model sft/ --data simple/ --validation validation/ -o run/
(import '../embedded/rl.jsonnet') + {
  num_iterations: 20,
  learning_rate: 4e-5,
  kl_coeff: 0.01,
  per_token_advantage: 0.9,  // one advantage for all 144 codes is too weak a signal for so few edits
  checkpoint_every: 5,
  keep_model_every: 20,
  log_episodes_every_n_iterations: 20,
  validate_every: 10,
  validation_examples: 120,
}
