"""MinImagen: a small, readable text-to-image cascade in the manner of Imagen."""
