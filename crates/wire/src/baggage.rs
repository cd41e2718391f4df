//! The `baggage` header of a CONNECT: what the other end says of its workload, for telemetry.
//!
//! Nothing in it grants anything.

use std::fmt;
use std::sync::Arc;

use crate::Invalid;
use crate::limits::{BAGGAGE_MAX, BAGGAGE_MEMBERS_MAX};

/// What a workload says of itself. An absent member says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    /// Cluster.
    pub cluster: Option<Arc<str>>,
    /// Namespace.
    pub namespace: Option<Arc<str>>,
    /// Kind of the owner, which is part of the key of `workload_name`.
    pub workload_type: Option<OwnerType>,
    /// Name of the owner.
    pub workload_name: Option<Arc<str>>,
    /// Canonical service name.
    pub service_name: Option<Arc<str>>,
    /// Canonical service revision.
    pub service_version: Option<Arc<str>>,
    /// Region.
    pub region: Option<Arc<str>>,
    /// Zone.
    pub zone: Option<Arc<str>>,
}

/// Kind of a workload's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OwnerType {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

impl OwnerType {
    const ALL: [Self; 4] = [Self::Deployment, Self::CronJob, Self::Pod, Self::Job];

    /// The key of the owner's name.
    fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::CronJob => "k8s.cronjob.name",
            Self::Pod => "k8s.pod.name",
            Self::Job => "k8s.job.name",
        }
    }
}

impl Baggage {
    /// Reads a header value. Unknown keys, properties and empty values are skipped; of a repeated key the last counts.
    ///
    /// # Errors
    ///
    /// When it is too long, has too many members, or a member is not `key=value` of ASCII text, percent-encoded where needed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let mut baggage = Self::default();
        baggage.merge(bytes)?;
        Ok(baggage)
    }

    /// Reads a further value of a header that is sent in several lines.
    ///
    /// # Errors
    ///
    /// As [`Baggage::parse`]; members before the offending one have been read.
    pub fn merge(&mut self, bytes: &[u8]) -> Result<(), Invalid> {
        if bytes.len() > BAGGAGE_MAX {
            return Err(Invalid::TooLong { limit: BAGGAGE_MAX });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Invalid::Malformed("baggage"))?;
        for (index, member) in text.split(',').enumerate() {
            if index >= BAGGAGE_MEMBERS_MAX {
                return Err(Invalid::TooLong {
                    limit: BAGGAGE_MEMBERS_MAX,
                });
            }
            let member = member.split(';').next().unwrap_or_default().trim();
            if member.is_empty() {
                continue;
            }
            let (key, value) = member
                .split_once('=')
                .ok_or(Invalid::Malformed("baggage"))?;
            self.set(key.trim_end(), value.trim_start())?;
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Invalid> {
        let slot = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service_name,
            "service.version" => &mut self.service_version,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => {
                let Some(owner) = OwnerType::ALL.into_iter().find(|owner| owner.key() == key)
                else {
                    return Ok(());
                };
                if !value.is_empty() {
                    self.workload_type = Some(owner);
                }
                &mut self.workload_name
            }
        };
        if !value.is_empty() {
            *slot = Some(decode(value)?);
        }
        Ok(())
    }

    fn members(&self) -> [(&'static str, Option<&Arc<str>>); 7] {
        let owner = self.workload_type.unwrap_or(OwnerType::Deployment);
        [
            ("k8s.cluster.name", self.cluster.as_ref()),
            ("k8s.namespace.name", self.namespace.as_ref()),
            (owner.key(), self.workload_name.as_ref()),
            ("service.name", self.service_name.as_ref()),
            ("service.version", self.service_version.as_ref()),
            ("cloud.region", self.region.as_ref()),
            ("cloud.availability_zone", self.zone.as_ref()),
        ]
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (key, value) in self.members() {
            let Some(value) = value.filter(|value| !value.is_empty()) else {
                continue;
            };
            write!(f, "{separator}{key}=")?;
            encode(value, f)?;
            separator = ",";
        }
        Ok(())
    }
}

/// May stand in a value as it is: the `baggage-octet` of W3C Baggage, section 3.3.1.3, without the percent sign.
fn plain(b: u8) -> bool {
    matches!(b, 0x21 | 0x23..=0x24 | 0x26..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e)
}

fn encode(value: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for part in value.as_bytes().chunk_by(|a, b| plain(*a) && plain(*b)) {
        match (part, std::str::from_utf8(part)) {
            ([b], _) if !plain(*b) => write!(f, "%{b:02X}")?,
            (_, Ok(text)) => f.write_str(text)?,
            (_, Err(_)) => {}
        }
    }
    Ok(())
}

fn decode(value: &str) -> Result<Arc<str>, Invalid> {
    const MALFORMED: Invalid = Invalid::Malformed("baggage value");
    if !value.is_ascii() {
        return Err(MALFORMED);
    }
    if !value.contains('%') {
        return Ok(value.into());
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        let escaped = match tail {
            [high, low, after @ ..] if first == b'%' => digit(*high)
                .zip(digit(*low))
                .map(|(high, low)| (high << 4 | low, after)),
            _ => None,
        };
        // A percent sign that escapes nothing stands for itself: not every sender encodes.
        let (byte, after) = escaped.unwrap_or((first, rest));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes)
        .map(Into::into)
        .map_err(|_| MALFORMED)
}

fn digit(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Baggage, OwnerType};

    fn full() -> Baggage {
        Baggage {
            cluster: Some("Kubernetes".into()),
            namespace: Some("shop".into()),
            workload_type: Some(OwnerType::Deployment),
            workload_name: Some("web".into()),
            service_name: Some("web-app".into()),
            service_version: Some("v1".into()),
            region: Some("r1".into()),
            zone: Some("z1".into()),
        }
    }

    #[test]
    fn writes_the_members_in_the_order_of_the_contract() {
        let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,\
                    service.name=web-app,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
        assert_eq!(full().to_string(), text);
        assert_eq!(Baggage::parse(text.as_bytes()), Ok(full()));
    }

    #[test]
    fn leaves_out_what_is_empty() {
        let baggage = Baggage {
            namespace: Some("".into()),
            ..Baggage::default()
        };
        assert_eq!(baggage.to_string(), "");
        assert_eq!(Baggage::parse(b""), Ok(Baggage::default()));
    }

    #[test]
    fn tolerates_what_others_send() {
        let text = b" a=b , service.name = web ;p=1,k8s.namespace.name=,,k8s.cronjob.name=c%20d,cloud.region=100%";
        let baggage = Baggage::parse(text).unwrap();
        assert_eq!(baggage.service_name.as_deref(), Some("web"));
        assert_eq!(baggage.namespace, None);
        assert_eq!(baggage.workload_type, Some(OwnerType::CronJob));
        assert_eq!(baggage.workload_name.as_deref(), Some("c d"));
        assert_eq!(baggage.region.as_deref(), Some("100%"));
    }

    #[test]
    fn keeps_any_text_through_the_wire() {
        let value = "a,b;c=d \"e\\f% %41 \u{e4}\n";
        let baggage = Baggage {
            service_name: Some(value.into()),
            ..Baggage::default()
        };
        let text = baggage.to_string();
        assert!(text.bytes().all(|b| matches!(b, 0x21..=0x7e)), "{text}");
        assert_eq!(Baggage::parse(text.as_bytes()), Ok(baggage));
    }

    #[test]
    fn refuses_what_is_not_a_list_of_members() {
        let many = "a=b,".repeat(100);
        let long = "service.name=".to_owned() + &"a".repeat(9000);
        for text in [
            "novalue",
            "service.name=\u{e4}",
            "service.name=%ff",
            &many,
            &long,
        ] {
            assert!(Baggage::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
