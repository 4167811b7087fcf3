"""`llm-retriever`: the commands of this project under one name, their help, and their completion in a shell."""
