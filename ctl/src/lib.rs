//! ambitctl, the command line for people
