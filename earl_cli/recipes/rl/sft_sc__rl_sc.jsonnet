// Reinforcement learning on simple and complex edits, from a model trained on simple and complex edits together.
(import 'published.libsonnet') + (import 'rl.libsonnet').sc + (import 'sft.libsonnet').sc
