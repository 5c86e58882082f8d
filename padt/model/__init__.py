"""The model: image features, prototypes, the head over text and VRTs, the object decoder, and all of it together."""
