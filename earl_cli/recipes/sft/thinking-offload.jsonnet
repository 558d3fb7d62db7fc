// sft/thinking with parameters and optimizer in CPU memory.
(import 'thinking.jsonnet') + { sharding: 'zero3-offload' }
