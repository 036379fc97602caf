"""What `arictl doctor` looks at: each module gives findings and opens what it needs, for a few seconds at most."""
