"""Building blocks of methods: image synthesis, noise adaptation, the student and its training."""
