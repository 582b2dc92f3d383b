"""The vision-language-action model: ViT -> projector -> prefix-LM decoder."""
