"""Images in, named scores out: embedded predictors, classifiers of transformers, and words through CLIP."""
