// Everything of the npm client `openwhisk` that this server supports; prints one JSON document of what came back.
'use strict'
const openwhisk = require('openwhisk')
const [, , api, key, other] = process.argv
const ow = openwhisk({ api, api_key: key })
const said = {}

const failing = async (name, promise) => {
  try {
    await promise
    said[name] = 'no error'
  } catch (error) {
    said[name] = { status: error.statusCode, error: error.error, message: error.message }
  }
}
const until = async (look) => {
  for (let n = 0; n < 600; n++) {
    const found = await look()
    if (found) return found
    await new Promise(resolve => setTimeout(resolve, 50))
  }
  throw new Error('it never came')
}

const HELLO = `
import os
def main(args):
    print("hello", args.get("name"))
    return {"greeting": "hello " + args.get("name", "stranger"), "extra": args.get("extra"),
            "id": os.environ["__OW_ACTIVATION_ID"], "action": os.environ["__OW_ACTION_NAME"],
            "deadline": int(os.environ["__OW_DEADLINE"])}
`
const main = async () => {
  said.empty = await ow.actions.list()
  said.created = await ow.actions.create({
    name: 'hello', action: HELLO, kind: 'python:3', params: { extra: 7 },
    annotations: { description: 'greets' }, limits: { timeout: 20000, memory: 128 }
  })
  await failing('twice', ow.actions.create({ name: 'hello', action: HELLO, kind: 'python:3' }))
  said.blocking = await ow.actions.invoke({ name: 'hello', blocking: true, params: { name: 'Ada' } })
  said.result = await ow.actions.invoke({ name: 'hello', blocking: true, result: true, params: { name: 'Bob' } })
  const begun = await ow.actions.invoke({ name: 'hello', params: { name: 'Eve' } })
  said.begun = begun
  said.later = await until(async () => {
    const found = await ow.activations.get(begun.activationId)
    return found.response.status !== 'pending' && found
  })
  said.laterResult = await ow.activations.result(begun.activationId)
  said.laterLogs = await ow.activations.logs(begun.activationId)
  said.blockingResult = await ow.activations.result({ name: said.blocking.activationId })
  said.list = await ow.actions.list({ limit: 1 })
  said.count = await ow.actions.list({ count: true })
  said.got = await ow.actions.get('hello')
  said.gotWithout = await ow.actions.get({ name: 'hello', code: false })
  said.updated = await ow.actions.update({ name: 'hello', action: HELLO.replace('hello ', 'goodbye '), kind: 'python:3' })
  said.afterUpdate = await ow.actions.invoke({ name: 'hello', blocking: true, result: true })
  said.parameters = await ow.actions.update({ name: 'hello', params: { extra: 8 } })
  said.afterParameters = await ow.actions.invoke({ name: 'hello', blocking: true, result: true })
  said.zipped = await ow.actions.create({
    name: 'zipped', action: Buffer.from(other, 'base64'), exec: { kind: 'python:3', main: 'run', binary: true }
  })
  said.zippedResult = await ow.actions.invoke({ name: 'zipped', blocking: true, result: true, params: { n: 20 } })
  said.zippedCode = (await ow.actions.get('zipped')).exec
  await ow.actions.create({ name: 'bad', action: 'def main(args):\n  if args.get("raise"): raise ValueError("no")\n  return args["answer"]\n', kind: 'python:3' })
  await failing('applicationError', ow.actions.invoke({ name: 'bad', blocking: true, params: { answer: { error: 'mine' } } }))
  await failing('developerError', ow.actions.invoke({ name: 'bad', blocking: true, params: { raise: true } }))
  await failing('noDictionary', ow.actions.invoke({ name: 'bad', blocking: true, params: { answer: 'text' } }))
  said.array = await ow.actions.invoke({ name: 'bad', blocking: true, result: true, params: { answer: [1, 2] } })
  await ow.actions.create({ name: 'slow', action: 'import time\ndef main(args):\n  time.sleep(1.5)\n  return {"slow": True}\n', kind: 'python:3' })
  const slow = await ow.actions.client.request('POST', 'namespaces/_/actions/slow?blocking=true&timeout=200', { body: {} })
  said.slow = slow
  said.slowPending = await ow.activations.get(slow.activationId)
  said.slowLater = await until(async () => {
    const found = await ow.activations.get(slow.activationId)
    return found.response.status !== 'pending' && found.response
  })
  said.activations = await ow.activations.list({ name: 'hello', limit: 2 })
  said.activationsDocs = await ow.activations.list({ docs: true, limit: 1, since: 1 })
  said.namespaces = await ow.namespaces.list()
  said.triggers = await ow.triggers.list()
  said.rules = await ow.rules.list()
  said.packages = await ow.packages.list()
  await failing('trigger', ow.triggers.create({ name: 't' }))
  await failing('sequence', ow.actions.create({ name: 's', sequence: ['/_/hello'] }))
  await failing('inPackage', ow.actions.invoke({ name: 'p/hello', blocking: true }))
  await failing('nodejs', ow.actions.create({ name: 'n', action: 'function main() {}', kind: 'nodejs:20' }))
  await failing('syntax', ow.actions.create({ name: 'x', action: 'def main(:', kind: 'python:3' }))
  await failing('absent', ow.actions.invoke({ name: 'absent', blocking: true }))
  await failing('noActivation', ow.activations.get('0123'))
  await failing('elsewhere', ow.actions.list({ namespace: 'elsewhere' }))
  await failing('wrongKey', openwhisk({ api, api_key: 'a:b' }).actions.list())
  said.deleted = await ow.actions.delete('hello')
  await failing('gone', ow.actions.get('hello'))
  console.log(JSON.stringify(said))
}
main().catch(error => { console.error(error); console.log(JSON.stringify(said)); process.exit(1) })
