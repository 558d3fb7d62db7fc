// Reinforcement learning on complex edits, from a model trained on simple edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').c + (import 'sft.libsonnet').s
