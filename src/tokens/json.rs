//! JSON that every parser reads alike. Two readers that see two different headers in one token is how forged tokens
//! pass (RFC 8725 section 2.4), so what leaves room for that is no JSON of ours.

use std::{collections::BTreeSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};

/// Is it one JSON object in which no object, at any depth, has a member twice or spells a member's name with escapes?
///
/// A derived `Deserialize` takes a list of values for a struct, too; this does not.
pub fn is_plain_object(json: &[u8]) -> bool {
    json.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<Unambiguous>(json).is_ok()
}

struct Unambiguous;

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        Walk.deserialize(json).map(|()| Self)
    }
}

#[derive(Clone, Copy)]
struct Walk;

impl<'de> DeserializeSeed<'de> for Walk {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON with unique, plainly spelt member names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut names = BTreeSet::new();
        // Only a name without escapes can be borrowed from the text.
        while let Some(name) = members.next_key::<&'de str>()? {
            if !names.insert(name) {
                return Err(A::Error::custom("a member is there twice"));
            }
            members.next_value_seed(self)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::is_plain_object;

    #[test]
    fn one_reading_only() {
        for good in [
            r#"{"a":1,"b":{"a":[{"a":null},{"a":-1.5e3}]},"c":"\u0000 \"x\"","d":true}"#,
            " {} ",
        ] {
            assert!(is_plain_object(good.as_bytes()), "{good}");
        }
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"x":{"a":1,"b":2,"a":1}}"#,
            r#"{"x":[{"a":1,"a":1}]}"#,
            r#"[1]"#,
            r#""text""#,
            r#"{"\u0061":1}"#,
            r#"{"a":1,"\u0061":1}"#,
            r#"{"a\"":1}"#,
            r#"{"a":1,}"#,
            r#"{"a":1}//"#,
            r#"{"a":1}{"a":1}"#,
            r#"{"a":NaN}"#,
            "\u{feff}{}",
            "",
        ] {
            assert!(!is_plain_object(bad.as_bytes()), "{bad}");
        }
        assert!(!is_plain_object(b"{\"a\":\"\xff\"}"));
        let deep = "[".repeat(100_000);
        assert!(!is_plain_object(deep.as_bytes()));
    }
}
