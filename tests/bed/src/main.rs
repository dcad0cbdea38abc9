//! `agentfleet-bed demo` shows a whole life of three agents; `agentfleet-bed dev` keeps the same stack until Ctrl-C.
fn main() {}
