// Reinforcement learning on complex edits, from a model trained on simple edits with a chain of thought.
(import 'published.libsonnet') + (import 'rl.libsonnet').c + (import 'sft.libsonnet').think_s
