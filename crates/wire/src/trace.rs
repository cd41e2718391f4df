//! The `traceparent` header (W3C Trace Context).

use std::fmt;

use crate::Invalid;

/// Length of a version 00 header.
const LENGTH: usize = 55;

/// Position of a connection in a trace. Both ids are never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// Id of the trace.
    pub trace_id: u128,
    /// Id of the span that caused this one.
    pub parent_id: u64,
    /// Flags; bit 0 says that the caller records the trace.
    pub flags: u8,
}

impl TraceParent {
    /// The start of a trace that is not recorded, from random numbers of the caller.
    #[must_use]
    pub fn root(trace_id: u128, parent_id: u64) -> Self {
        // 0 is not a valid id; another fixed number will do for the one case in 2^64.
        Self {
            trace_id: trace_id.max(1),
            parent_id: parent_id.max(1),
            flags: 0,
        }
    }

    /// The header to send onward: the same trace, with `span_id`, a random number, as the parent.
    #[must_use]
    pub fn child(self, span_id: u64) -> Self {
        Self {
            parent_id: span_id.max(1),
            ..self
        }
    }

    /// Does the caller record the trace.
    #[must_use]
    pub fn sampled(self) -> bool {
        self.flags & 1 == 1
    }

    /// Reads a header value. Versions after 00 are read as far as they agree with it, as the specification asks.
    ///
    /// # Errors
    ///
    /// When it has another form, upper-case digits, the version ff, or an id of zeros.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let (head, rest) = bytes
            .split_at_checked(LENGTH)
            .ok_or(Invalid::Malformed("length"))?;
        let version = hex(head.get(..2))?;
        let longer = rest.first().is_some_and(|&b| b == b'-') && version != 0;
        if version == 0xff || !(rest.is_empty() || longer) {
            return Err(Invalid::Malformed("version"));
        }
        let dashes = [2, 35, 52].iter().all(|&at| head.get(at) == Some(&b'-'));
        if !dashes {
            return Err(Invalid::Malformed("traceparent"));
        }
        let trace_id = hex(head.get(3..35))?;
        let parent_id = u64::try_from(hex(head.get(36..52))?).unwrap_or_default();
        let flags = u8::try_from(hex(head.get(53..55))?).unwrap_or_default();
        if trace_id == 0 || parent_id == 0 {
            return Err(Invalid::Malformed("id"));
        }
        Ok(Self {
            trace_id,
            parent_id,
            flags,
        })
    }
}

fn hex(digits: Option<&[u8]>) -> Result<u128, Invalid> {
    let mut number = 0_u128;
    for &digit in digits.unwrap_or_default() {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return Err(Invalid::Malformed("digit")),
        };
        number = (number << 4) | u128::from(value);
    }
    Ok(number)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.parent_id, self.flags
        )
    }
}

#[cfg(test)]
mod tests {
    use super::TraceParent;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn reads_and_writes_the_example_of_the_specification() {
        let parent = TraceParent::parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(parent.to_string(), EXAMPLE);
        assert!(parent.sampled());
        let child = parent.child(0x00f0_67aa_0ba9_02b7);
        assert_eq!(
            child.to_string(),
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
        );
    }

    #[test]
    fn reads_a_later_version_as_far_as_it_agrees() {
        let later = EXAMPLE.replacen("00", "cc", 1) + "-what-follows";
        assert_eq!(
            TraceParent::parse(later.as_bytes()),
            TraceParent::parse(EXAMPLE.as_bytes())
        );
    }

    #[test]
    fn refuses_other_forms() {
        let cases = [
            String::new(),
            EXAMPLE.to_uppercase(),
            format!("{EXAMPLE}-"),
            format!("{EXAMPLE}x"),
            EXAMPLE.replacen("00", "ff", 1),
            EXAMPLE.replacen("00", "cc", 1) + "x",
            EXAMPLE.replace('-', "_"),
            EXAMPLE.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            EXAMPLE.replace("b7ad6b7169203331", &"0".repeat(16)),
        ];
        for text in cases {
            assert!(TraceParent::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn never_makes_an_id_of_zero() {
        assert!(TraceParent::parse(TraceParent::root(0, 0).to_string().as_bytes()).is_ok());
    }
}
