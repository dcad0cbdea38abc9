//! Whether Hetzner offers what a class asks for; pure.

use jiff::Timestamp;

use super::desired::Desired;
use crate::hetzner::{Offer, Problem};

/// Checks each type, each location and the image. That a type is not offered in one of several locations is no mistake, as long as it is
/// offered in one.
///
/// # Errors
/// The first field that is wrong, and what may stand there.
pub fn check(desired: &Desired, offer: &Offer, at: Timestamp) -> Result<(), String> {
    for server_type in &desired.server_types {
        let mut nowhere: Option<Problem> = None;
        let mut somewhere = false;
        for location in &desired.locations {
            match offer.validate(server_type, location, at) {
                Ok(_) => somewhere = true,
                Err(problem)
                    if problem.field == "serverTypes"
                        && problem.value == *server_type
                        && !problem.detail.is_empty() =>
                {
                    nowhere = Some(problem);
                }
                Err(problem) => return Err(format!("spec.{problem}")),
            }
        }
        if let Some(problem) = nowhere.filter(|_| !somewhere) {
            return Err(format!("spec.{problem}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::AgentClass, hetzner};

    fn offer() -> Offer {
        let location = |name: &str| hetzner::Location {
            name: name.into(),
            network_zone: String::new(),
        };
        let here = |name: &str| hetzner::TypeLocation {
            name: name.into(),
            available: Some(true),
            deprecation: None,
        };
        let server_type = |name: &str, architecture, locations| hetzner::ServerType {
            name: name.into(),
            architecture: Some(architecture),
            disk: None,
            locations,
        };
        let image = hetzner::Image {
            id: hetzner::ImageId(1),
            name: Some("debian-13".into()),
            architecture: Some(hetzner::Architecture::X86),
        };
        Offer {
            server_types: [
                server_type(
                    "cx23",
                    hetzner::Architecture::X86,
                    vec![here("nbg1"), here("fsn1")],
                ),
                server_type("cpx", hetzner::Architecture::X86, vec![here("ash")]),
                server_type("cax11", hetzner::Architecture::Arm, vec![here("nbg1")]),
            ]
            .into(),
            locations: [location("nbg1"), location("fsn1"), location("ash")].into(),
            system_images: [image.clone()].into(),
            image: "debian-13".into(),
            images: [image].into(),
        }
    }

    fn checked(types: &[&str], locations: &[&str], offer: &Offer) -> Result<(), String> {
        let class: AgentClass = serde_json::from_value(serde_json::json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentClass", "metadata": {"name": "small"},
            "spec": {"projects": ["one"], "serverTypes": types, "locations": locations, "image": "debian-13",
                     "firewall": {"sshFrom": ["10.0.0.0/8"]}, "agent": {"service": {"execStart": ["/bin/agent"]}}}
        }))
        .unwrap();
        check(
            &Desired::parse(&class, 22, &[]),
            offer,
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn what_is_offered_somewhere_renders() {
        assert_eq!(checked(&["cx23"], &["nbg1"], &offer()), Ok(()));
        assert_eq!(
            checked(&["cx23", "cpx"], &["nbg1", "ash"], &offer()),
            Ok(())
        );
    }

    #[test]
    fn mistake_names_the_field_and_the_valid_values() {
        let wrong_location = checked(&["cx23"], &["nbg1", "mars"], &offer()).unwrap_err();
        assert_eq!(
            wrong_location,
            "spec.locations: mars is not offered; valid: ash, fsn1, nbg1"
        );
        let wrong_type = checked(&["cx99"], &["nbg1"], &offer()).unwrap_err();
        assert_eq!(
            wrong_type,
            "spec.serverTypes: cx99 is not offered; valid: cax11, cx23"
        );
        let nowhere = checked(&["cx23", "cpx"], &["nbg1"], &offer()).unwrap_err();
        assert_eq!(
            nowhere,
            "spec.serverTypes: cpx is not offered in nbg1; valid: cax11, cx23"
        );
        let no_image = checked(&["cax11"], &["nbg1"], &offer()).unwrap_err();
        assert!(
            no_image.starts_with("spec.image: debian-13 is not offered for arm"),
            "{no_image}"
        );
    }
}
