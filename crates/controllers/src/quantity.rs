//! Resource quantities as numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity in thousandths of its unit, rounded up; none if it is no number.
pub(crate) fn milli(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let negative = number.starts_with('-');
    let number = number.trim_start_matches(['+', '-']);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || part.len() > 12 || whole.len() > 24 {
        return None;
    }
    let digits: i128 = format!("0{whole}{part}").parse().ok()?;
    let places = u32::try_from(part.len()).ok()?;
    // Numerator and denominator of the suffix, for thousandths.
    let (up, down): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "" => (1000, 1),
        "k" => (1000 * 1000, 1),
        "M" => (1000 * 1000_i128.pow(2), 1),
        "G" => (1000 * 1000_i128.pow(3), 1),
        "T" => (1000 * 1000_i128.pow(4), 1),
        "P" => (1000 * 1000_i128.pow(5), 1),
        "E" => (1000 * 1000_i128.pow(6), 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        "Pi" => (1000 << 50, 1),
        "Ei" => (1000 << 60, 1),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 {
                (1000, power)
            } else {
                (power.checked_mul(1000)?, 1)
            }
        }
    };
    let down = down.checked_mul(10_i128.checked_pow(places)?)?;
    let value = digits.checked_mul(up)?;
    let value = value.checked_add(down - 1)? / down;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("2", Some(2000))]
    #[case("100m", Some(100))]
    #[case("0.1", Some(100))]
    #[case("1.5Gi", Some(1_610_612_736_000))]
    #[case("128M", Some(128_000_000_000))]
    #[case("1e3", Some(1_000_000))]
    #[case("5e-3", Some(5))]
    #[case("100n", Some(1))]
    #[case("-1", Some(-1000))]
    #[case("", None)]
    #[case("Gi", None)]
    #[case("1x", None)]
    #[case("1e999", None)]
    fn quantities_are_numbers(#[case] text: &str, #[case] expected: Option<i128>) {
        assert_eq!(milli(&Quantity(text.into())), expected);
    }
}
