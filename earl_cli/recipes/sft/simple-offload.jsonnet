// sft/simple with parameters and optimizer in CPU memory: slower, for GPUs with less than 80 GB.
(import 'simple.jsonnet') + { sharding: 'zero3-offload' }
