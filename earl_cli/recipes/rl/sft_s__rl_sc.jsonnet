// Reinforcement learning on simple and complex edits, from a model trained on simple edits. The paper's best model.
(import 'published.libsonnet') + (import 'rl.libsonnet').sc + (import 'sft.libsonnet').s
