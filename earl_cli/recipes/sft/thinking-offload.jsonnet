// sft/thinking with parameters and optimizer in the processors' memory.
(import 'thinking.jsonnet') + { sharding: 'zero3-offload' }
