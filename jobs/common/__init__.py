"""What all verbs share: references to models, Ray and MLflow sessions, console."""
