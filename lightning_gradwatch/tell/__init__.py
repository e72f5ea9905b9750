"""Telling: findings as text. What a rule says is data; how it reads is decided here."""
