//! Amounts of resources: `500m`, `1.5Gi`, `2e3`.

/// The amount in billionths, the finest unit there is; `None` when the text is
/// no quantity or too large.
///
/// Source: the serialization format described at the `Quantity` type of
/// Kubernetes' resource package.
pub fn parse(text: &str) -> Option<i128> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (numerator, denominator) = scale(suffix)?;
    let mut digits: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        digits = digits
            .checked_mul(10)?
            .checked_add(i128::from(digit - b'0'))?;
    }
    let places = u32::try_from(fraction.len()).ok()?;
    let divisor = 10_i128.checked_pow(places)?.checked_mul(denominator)?;
    let product = digits.checked_mul(numerator)?;
    // Rounded up, as quantities are when they are finer than the unit.
    let amount = product / divisor + i128::from(product % divisor != 0);
    Some(if negative { -amount } else { amount })
}

/// Billionths per unit of the suffix, as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    const NANO: i128 = 1_000_000_000;
    let times = |factor: i128| Some((NANO * factor, 1));
    match suffix {
        "n" => Some((1, 1)),
        "u" => Some((1_000, 1)),
        "m" => Some((1_000_000, 1)),
        "" => times(1),
        "k" => times(1_000),
        "M" => times(1_000_000),
        "G" => times(1_000_000_000),
        "T" => times(1_000_000_000_000),
        "P" => times(1_000_000_000_000_000),
        "E" => times(1_000_000_000_000_000_000),
        "Ki" => times(1 << 10),
        "Mi" => times(1 << 20),
        "Gi" => times(1 << 30),
        "Ti" => times(1 << 40),
        "Pi" => times(1 << 50),
        "Ei" => times(1 << 60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 {
                Some((NANO, power))
            } else {
                Some((NANO.checked_mul(power)?, 1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("1", Some(1_000_000_000))]
    #[case("100m", Some(100_000_000))]
    #[case("0.1", Some(100_000_000))]
    #[case(".5", Some(500_000_000))]
    #[case("5.", Some(5_000_000_000))]
    #[case("-1", Some(-1_000_000_000))]
    #[case("1Ki", Some(1_024_000_000_000))]
    #[case("1.5Ki", Some(1_536_000_000_000))]
    #[case("2e3", Some(2_000_000_000_000))]
    #[case("2E-3", Some(2_000_000))]
    #[case("1E", Some(1_000_000_000_000_000_000_000_000_000))]
    #[case("", None)]
    #[case("x", None)]
    #[case("1x", None)]
    #[case("1.2.3", None)]
    #[case("1 Gi", None)]
    #[case("e3", None)]
    #[case("9999999999999999999999999999999999999999", None)]
    #[case("1e99", None)]
    fn quantities(#[case] text: &str, #[case] expected: Option<i128>) {
        assert_eq!(parse(text), expected);
    }
}
