//! Threads, tasks, drain, readiness and time
