// Reinforcement learning on complex edits, from a model trained on simple, then complex edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').c + (import 'sft.libsonnet').sc2stage
