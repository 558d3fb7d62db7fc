// Reinforcement learning on simple edits, from a model trained on simple edits with a chain of thought.
(import 'published.libsonnet') + (import 'rl.libsonnet').s + (import 'sft.libsonnet').think_s
