// sft/simple on data with a chain of thought; its keys are given on the command line: --cot-keys plan,objects
(import 'simple.jsonnet') + { thinking: true }
