"""What stands between us and a model. In this order, from outside to inside:

| guard | what it does | module |
|---|---|---|
| fallback | another model stands in for one that is out, and the answer says so | `chain`, `stand_in` |
| cache | what was answered before is not asked again | (search's own) |
| meter | counts the call, its time, tokens and price: metrics, and the ledger | `meter`, `ledger` |
| budget | refuses what is not to be spent | `budget` |
| concurrency | so many calls at a time, so many in line, the others refused at once | `line` |
| rate | so many requests and tokens a minute, by all processes | `rate` |
| retry | the one loop that asks again, for what may pass | `retry` |
| breaker | does not ask a model that has failed again and again | `breaker` |
| timeout | an end to each attempt | `guard` |

Breakers and rates are shared by processes: `shared` says where, in the catalog or in Redis (`in_redis`). What is past a
threshold is told by `thresholds` and `alerts`.

`Guard` puts those of one model together, for any call; `embedder`, `reranker` and `generator` have the interface of
what they wrap. A stream is guarded by retry, breaker and timeout until its first part; what comes after is the
caller's already, and cannot be asked for again.

A model that runs in this process has a meter and a place in line, and nothing else: there is no provider that could be
out.
"""
