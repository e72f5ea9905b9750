"""The tab in TensorBoard: what it registers, how it reads runs through TensorBoard, and what it serves."""
