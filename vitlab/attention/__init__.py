"""What a model looks at: tensors in, tensors out."""
