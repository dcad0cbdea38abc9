//! What an attacker, an agent and a guest that went mad can do on real machines: nothing that counts.

mod somebody_in_the_middle;
