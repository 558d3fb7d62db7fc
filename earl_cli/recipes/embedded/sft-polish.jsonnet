// The third part, from the embedded model itself: pairs it hasn't seen, of all kinds and of places in equal shares.
(import 'sft.jsonnet') + {
  max_steps: 1200,
  learning_rate: 3e-4,
  min_learning_rate: 1e-5,
  warmup_steps: 50,
  validate_every: 200,
  checkpoint_every: 50,
}
