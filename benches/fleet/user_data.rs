//! The size of what a server is born with.

use agentfleet::render;
use bed::Outcome;

use crate::summary::{Summary, number};

/// Renders the class of a real agent, as `agentfleet render` does.
pub(crate) fn measure(summary: &mut Summary) -> Outcome {
    let objects = render::objects(&[bed::project().join("examples/rachel8")])?;
    let user_data = render::user_data(&objects, None)?;
    summary.add(
        "rachel8_user_data_bytes",
        (number(user_data.sent_bytes()), "bytes"),
        1,
        "as sent: base64 of gzip, of 32768 that Hetzner takes",
    )
}
