"""What methods that train through the whole chain share: shift control, discriminator, optimisers, starts."""
