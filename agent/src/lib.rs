//! The node agent: enrolment, redirection and ZDS
