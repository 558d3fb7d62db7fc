// The paper's claim in miniature: supervised training that continues from the embedded model.
// make reproduce: earl sft --config miniature/sft --data simple/ --validation validation/ -o run/
(import '../embedded/sft.jsonnet') + {
  max_steps: 200,
  learning_rate: 3e-4,
  min_learning_rate: 2e-5,
  warmup_steps: 20,
  validate_every: 50,
  checkpoint_every: 50,
}
