"""What is told of requests: metrics, a log, samples of questions and answers, traces. A request never waits for it."""
