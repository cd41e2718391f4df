//! Logs, access records, metrics and the admin server
