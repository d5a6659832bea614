"""Short questions to this project's own documentation: a check on texts that nothing was fitted on."""

from __future__ import annotations

ANSWERED = """
How do I back up a home?
How do I choose the chunk size?
How do I delete a document?
What happens when a process is killed?
Which file formats can be read?
Where is the configuration file?
How do I set an API key?
How can I use Postgres?
Which model makes the embeddings?
How do I restore a backup?
What does degraded mean?
How are scores computed?
How do I change the port?
What is a collection?
How do I ask in German?
How is a citation checked?
Which languages are supported?
How do I read scanned pages?
What is the owner?
How do I stream an answer?
How do I evaluate retrieval?
Can it use OpenAI?
How do I open an encrypted PDF?
What is a view?
How do I filter a search?
""".strip().splitlines()

UNANSWERED = """
How do I deploy on Kubernetes?
How do I train my own embedding model?
Who founded the company?
How much does a licence cost?
What is the capital of France?
How do I connect to Slack?
Does it support voice input?
How do I integrate with SharePoint?
When was version 2.0 released?
How do I write a plugin in Rust?
Which GPU do I need?
How do I set up single sign-on?
What is the weather tomorrow?
How do I bake bread?
How do I translate a document into French?
Is there a mobile app?
How do I fine-tune the reranker?
How do I reset my password?
Does it summarise videos?
How do I share a folder with a colleague?
How do I migrate from Elasticsearch?
Who won the World Cup in 2014?
How do I send an invoice?
What is the maximum upload speed?
How do I use Redis as a cache?
""".strip().splitlines()
