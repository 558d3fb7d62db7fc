// Reinforcement learning on simple and complex edits, from a model trained on simple edits with a chain of thought.
(import 'published.libsonnet') + (import 'rl.libsonnet').sc + (import 'sft.libsonnet').think_s
