"""`tuco serve`: vLLM's OpenAI API with alpha per request and TuCo per token, and a page that shows both."""
