// Reinforcement learning on complex edits, from a model trained on simple and complex edits together.
(import 'published.libsonnet') + (import 'rl.libsonnet').c + (import 'sft.libsonnet').sc
