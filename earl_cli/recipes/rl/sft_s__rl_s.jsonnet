// Reinforcement learning on simple edits, from a model trained on simple edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').s + (import 'sft.libsonnet').s
