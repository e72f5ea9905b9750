"""What rules find in records: facts, their causes and the sentences on them."""
