"""JSON has one kind of number, and to the generator 3.0 is a whole one; the agent takes it for what it is written as."""
import schemathesis


def whole(value):
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


@schemathesis.hook
def before_call(context, case, kwargs):
    case.body = whole(case.body)
