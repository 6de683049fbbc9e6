//! Lengths of time as Kubernetes writes them: `250ms`, `2s`, `1h30m`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whole hours, minutes, seconds and milliseconds; the form Gateway API accepts (GEP-2257).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(std::time::Duration);

/// Why a text is not a [`Duration`]; says what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a duration such as \"250ms\", \"2s\" or \"1h30m\": whole numbers, each with its unit h, m, s or ms"
)]
pub struct ParseError;

impl Duration {
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }

    /// Whole milliseconds; never truncates, nothing shorter can be written.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for Duration {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut rest = text;
        let mut millis = 0_u64;
        let mut parts = 0;
        while !rest.is_empty() && parts < 4 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = match digits {
                1..=5 => rest[..digits].parse().map_err(|_| ParseError)?,
                _ => return Err(ParseError),
            };
            rest = &rest[digits..];
            let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
            let unit = match &rest[..letters] {
                "h" => 3_600_000,
                "m" => 60_000,
                "s" => 1_000,
                "ms" => 1,
                _ => return Err(ParseError),
            };
            rest = &rest[letters..];
            millis += number * unit;
            parts += 1;
        }
        if parts == 0 || !rest.is_empty() {
            return Err(ParseError);
        }
        Ok(Self::from_millis(millis))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if rest >= millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&ParseError, f)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        // A bare number is refused: seconds for one reader are milliseconds for the next.
        deserializer.deserialize_str(Visitor)
    }
}

/// A text; its form and range are said by each field of this type.
impl schemars::JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for (text, millis, printed) in [
            ("250ms", 250, "250ms"),
            ("2s", 2_000, "2s"),
            ("1h", 3_600_000, "1h"),
            ("1h30m", 5_400_000, "1h30m"),
            ("1s500ms", 1_500, "1s500ms"),
            ("1500ms", 1_500, "1s500ms"),
            ("0s", 0, "0s"),
            ("99999h", 359_996_400_000, "99999h"),
        ] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!((duration.as_millis(), duration.to_string().as_str()), (millis, printed));
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "5",
            "1.5s",
            "-1s",
            "+1s",
            "1d",
            "1 s",
            " 1s",
            "1s ",
            "s",
            "1us",
            "1ns",
            "100000s",
            "1S",
            "1h1h1h1h1h",
            "1e3ms",
            "½s",
        ] {
            assert_eq!(text.parse::<Duration>(), Err(ParseError), "{text:?}");
        }
    }
}
