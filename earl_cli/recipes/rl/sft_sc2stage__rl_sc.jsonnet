// Reinforcement learning on simple and complex edits, from a model trained on simple, then complex edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').sc + (import 'sft.libsonnet').sc2stage
